"""Code that the drivers share: endings, ids, JSON lines, logins, programs, retention."""
