"""Blocking system calls: the one seam through which fork, kill, wait, bind and the files are reached. No asyncio."""
