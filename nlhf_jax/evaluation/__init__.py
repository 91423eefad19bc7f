"""What is measured once policies are trained, and the page that shows it."""
