"""What a machine without accounts needs: embedded Postgres, label-server and Shopify sandboxes, `up` and `demo`."""
