"""Connects perdure to forges. Receives webhooks, dispatches deliveries, posts replies, and contains
the clients of the forges' REST APIs."""
