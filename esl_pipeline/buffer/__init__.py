"""Supabase or Postgres as inbox, validation buffer, queue and audit: SQL functions behind one Python class."""
