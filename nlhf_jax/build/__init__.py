"""From a config to objects; the only room that reads one."""
