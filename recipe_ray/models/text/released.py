"""Model `bert`: any BERT or RoBERTa checkpoint, from a local folder or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from recipe_ray.base.errors import ModelError
from recipe_ray.base.paths import expanded
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import fetch_model, model_commit
from recipe_ray.models.contents import check_readable
from recipe_ray.models.family import MODELS, AllowPickle, IgnoreAdapter, ModelRef, Revision

if TYPE_CHECKING:
    from recipe_ray.models.text.bert import BertPTM
    from recipe_ray.models.text.checkpoint import Parts


@MODELS.register("bert")
class BertCheckpoint(ModelRef):
    """A checkpoint with a masked-LM head, by local folder or hub id."""

    has = ModelRef.has | {"Attackable", "HasVocabulary"}

    source: str = Field(
        description="local folder, or hub id such as google-bert/bert-base-uncased",
        json_schema_extra=NOT_HASHED,
    )
    revision: Revision = None
    headless: bool = Field(
        False, description="the checkpoint has no masked-LM head; a pretrain stage fits one"
    )
    allow_pickle: AllowPickle = False
    ignore_adapter: IgnoreAdapter = False

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names BERT's or RoBERTa's architecture."""
        from recipe_ray.base.loading import says
        from recipe_ray.models.text.bert import ARCHITECTURES

        return says(folder, "model_type") in ARCHITECTURES

    def load(self) -> BertPTM:
        """Return the checkpoint, from the folder or downloaded."""
        from recipe_ray.models.text.checkpoint import load_bert

        return load_bert(
            self._folder(),
            allow_pickle=self.allow_pickle,
            allow_headless=self.headless,
            ignore_adapter=self.ignore_adapter,
        )

    def reload(self, folder: Path) -> BertPTM:
        """Return a PTM that a stage saved."""
        from recipe_ray.models.text.checkpoint import load_bert

        return load_bert(folder)

    def content(self) -> dict[str, Any]:
        """Return the files' checksums for a folder, the commit for a hub id."""
        from recipe_ray.base.loading import check_adapter, checksums_in

        folder = self._local()
        if folder is not None:
            check_readable(folder, self.name)
            check_adapter(folder, ignore=self.ignore_adapter)
            files = [path for path in folder.iterdir() if not path.is_dir()]
            return {"files": checksums_in(folder, files), "headless": self.headless}
        commit = model_commit(self.source, self.revision, self.allow_pickle)
        return {"hub": self.source, "commit": commit, "headless": self.headless}

    def pinned(self) -> Self:
        """Return the model with the hub commit looked up; a folder as it is."""
        if self._local() is not None:
            return self
        return self.revised(revision=self.content()["commit"])

    @property
    def needs_pretraining(self) -> bool:
        """Whether the user said that the head is missing."""
        return self.headless

    def as_found(self) -> Self:
        """Return the model, headless if its weights have no masked-LM head."""
        if self.headless or self._parts().head:
            return self
        return self.revised(headless=True)

    def home(self) -> Path:
        """Return the folder, or the snapshot of the hub."""
        return self._folder()

    def drawn_parts(self) -> list[str]:
        """Return what is said of a missing pooler."""
        if self._parts().pooler:
            return []
        kept = "it is not in the result" if self.headless else "it is in the result"
        return [
            f"MODEL has no pooler: one was drawn at random (seed 0), and {kept}; do not build on it"
        ]

    def left_out(self) -> list[str]:
        """Return what is said of an adapter in the folder."""
        from recipe_ray.base.loading import adapter_note

        return adapter_note(self._folder())

    def give_back(self, folder: Path) -> list[str]:
        """Leave out a fitted head, keep the rest of the checkpoint; say what is left out."""
        from recipe_ray.models.text.given import give_back, left_behind

        give = give_back if self.headless else left_behind
        return give(
            folder,
            self._folder(),
            allow_pickle=self.allow_pickle,
            ignore_adapter=self.ignore_adapter,
        )

    def default_label(self) -> str:
        """Return the last part of the source's name."""
        return self.source.rstrip("/").rsplit("/", 1)[-1]

    def _parts(self) -> Parts:
        from recipe_ray.models.text.checkpoint import parts_of

        return parts_of(
            self._folder(), allow_pickle=self.allow_pickle, ignore_adapter=self.ignore_adapter
        )

    def _folder(self) -> Path:
        folder = self._local()
        if folder is not None:
            return folder
        return fetch_model(self.source, self.revision, allow_pickle=self.allow_pickle).path

    def _local(self) -> Path | None:
        """Return the folder, None for a hub id; raise ModelError for a folder that is missing."""
        folder = expanded(self.source)
        if folder.is_dir():
            return folder
        if self.source.startswith(("/", ".", "~")):
            raise ModelError(f"model folder {self.source} does not exist")
        return None
