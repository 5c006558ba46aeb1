"""Ray: the sweep under Tune, DDP stages under Train, streams of Data. Nothing else imports it."""
