"""Several hosts, one PostgreSQL: what is lost, doubled or overtaken when the server, the network or
a host fails (F8 and F10)."""
