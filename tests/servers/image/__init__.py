"""The container image of the Containerfile, built without a container engine, and containers of
it."""
