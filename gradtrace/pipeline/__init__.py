"""From the records to the exporters: queues, retries, and how far each has got."""
