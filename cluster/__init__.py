"""Where it runs: connection, resources, what can be observed."""
