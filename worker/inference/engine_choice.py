"""The engine that generates with a model, by the service's setting and the model's files."""

from services.generate_engines import ENGINES, Engine, GenerateEngine
from services.kinds.shared import ModelChoice
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from worker.inference.model_key import ModelKey, key_of


def generating_key(choice: ModelChoice, store: ModelStore, setting: GenerateEngine) -> ModelKey:
    """Returns the key of a model that text is generated from.

    Raises:
        ModelNotFound: a folder does not exist.
    """
    kind = kind_of_folder(store.path(choice.model))
    engine: Engine = ENGINES.get(kind, {}).get(setting, "graftwerk")
    return key_of(choice, store, engine)
