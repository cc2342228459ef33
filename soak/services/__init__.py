"""Services that prefork runs for the scenarios, imported in workers alone; they import as little as they can."""
