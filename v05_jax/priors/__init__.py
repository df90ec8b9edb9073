"""Priors: what success to expect of a prompt before anything is sampled, a prior a file
(`--config.prior.kind`), and what may be wrapped around one (`--config.prior.wrappers`)."""
