"""What everything else stands on: errors, specs, the registry, identity, safe loading."""
