"""What the tests share: real programs and servers, streams on every loop, scripts that fork, a simulated fleet."""
