"""The guard behind OpenAI's moderation API, on Ray Serve."""
