"""What users test their own handlers with, and what the tests here use."""
