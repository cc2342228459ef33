"""The connections of one worker, on asyncio. No processes: nothing here forks, kills or waits for one."""
