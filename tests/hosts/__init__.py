"""Several hosts with one PostgreSQL: nothing may be lost or done twice when the server, the network
or a host fails (F8 and F10)."""
