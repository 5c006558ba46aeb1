"""Ray: the sweep under Tune, DDP stages under Train, corpora through Data. Nothing else imports it."""
