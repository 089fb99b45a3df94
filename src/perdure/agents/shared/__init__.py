"""Code that the drivers share: outcomes, ids, JSON lines, logins, programs, retention."""
