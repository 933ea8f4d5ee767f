"""What tests share: small worlds, tiny models, processes. Imported as `support`."""
