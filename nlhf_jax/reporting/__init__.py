"""Tables, figures and pages that report results."""
