"""The exception tree.

SeqRouteError            a caller's mistake: its message names the value, the rule and the way out
  ConfigError            a flag, a config field or a file of settings breaks a rule
  DataError              logs or datasets break their schema
    StoppedError         work that stopped for a reason outside the data, and goes on when it is run again
  UnknownModelError      a model that is not in the catalog
  ArtefactError          a policy folder that this version cannot load
  BudgetExhaustedError   the session's money left cannot pay for the request
  NoModelError           the models that the money could pay cannot be called now
  LedgerError            a reservation that cannot be settled or released as asked
    UnknownSessionError  no session of that name was opened
  LedgerUnavailable      the ledger's store does not answer: nothing can be granted
"""


class SeqRouteError(Exception):
    """Base of every error that a caller can mend."""


class ConfigError(SeqRouteError):
    """A setting breaks a rule."""


class DataError(SeqRouteError):
    """Logs or datasets break their schema."""


class StoppedError(DataError):
    """Work stopped for a reason outside the data (a place, an endpoint, a worker): run again, and it goes on."""


class UnknownModelError(SeqRouteError):
    """A model is not in the catalog."""


class ArtefactError(SeqRouteError):
    """A policy folder cannot be used."""


class BudgetExhaustedError(SeqRouteError):
    """The money left cannot pay for the request; amount_nusd: what it would have had to pay."""

    def __init__(self, message: str, amount_nusd: int = 0) -> None:
        super().__init__(message)
        self.amount_nusd = amount_nusd


class NoModelError(SeqRouteError):
    """The models that the money could pay cannot be called now."""


class LedgerError(SeqRouteError):
    """A reservation cannot be settled or released as asked."""


class UnknownSessionError(LedgerError):
    """No session of that name was opened."""


class LedgerUnavailable(SeqRouteError):
    """The ledger's store does not answer; nothing can be granted."""
