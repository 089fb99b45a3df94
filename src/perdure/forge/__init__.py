"""Forges: webhooks in, deliveries dispatched, replies out, and the clients of their REST APIs."""
