"""Services that prefork runs for the scenarios, imported only in workers; they import as little as they can."""
