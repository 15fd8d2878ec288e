"""Shopify products to Hipoink electronic shelf labels, through Supabase and Dagster."""

__version__ = "0.1.0"
