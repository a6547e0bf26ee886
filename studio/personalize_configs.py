"""The settings of a personalization as frozen dataclasses, importable without torch.

``task: personalize`` in a scene file: photos of a subject, a method, the prior that learns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import field as setting
from typing import Literal

from image_tools.configs import DdimConfig, PocketPriorConfig, PriorConfig
from image_tools.personalization.dreambooth_configs import (
    DcoConfig,
    DreamBoothConfig,
    DreamBoothLoraConfig,
)
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig

__all__ = ["MethodConfig", "PersonalizeConfig", "SamplesConfig", "SubjectPhotosConfig"]

MethodConfig = TextualInversionConfig | DreamBoothConfig | DreamBoothLoraConfig | DcoConfig
VOWELS = "aeiou"
ARTICLES = ("a", "an", "the", "my", "this", "that")


@dataclass(frozen=True)
class SubjectPhotosConfig:
    """Whose photos, and how prompts speak of it."""

    images: str = ""
    """Folder with three to six photos of the subject."""
    word: str = ""
    """What the subject is, in a word or two: dog, teddy bear."""
    token: str = ""
    """How prompts name the subject. Empty for a new word, <my-dog>, where one is learned
    (textual_inversion, dco), and for sks dog with DreamBooth."""
    template: str = "a photo of {}"
    """Caption of each photo, with {} where the subject goes; textual_inversion has method.templates
    in its place."""
    captions: str | None = None
    """JSON file with a full description of each photo (images, prompts, base_prompts,
    inserting_tokens, initializer_tokens), for dco; empty for the template."""
    photos: PhotosConfig = setting(default_factory=PhotosConfig)
    """How photos become squares."""

    def __post_init__(self) -> None:
        """Refuse a caption that does not speak of the subject."""
        if "{}" not in self.template:
            raise ValueError(
                f"template is {self.template!r} - expected {{}} where the subject goes."
            )


@dataclass(frozen=True)
class SamplesConfig:
    """Pictures of what is learned so far; method.loop.sample_every says how often."""

    prompts: tuple[str, ...] = ("a photo of {}", "{} from the back", "a painting of {}")
    """One row each, with {} where the subject goes."""
    columns: int = 4
    """Pictures in a row."""
    sampler: DdimConfig = setting(default_factory=lambda: DdimConfig(steps=20))
    """How they are made."""

    def __post_init__(self) -> None:
        """Refuse an empty grid."""
        if self.columns < 1 or not self.prompts:
            raise ValueError(
                f"columns is {self.columns} with {len(self.prompts)} prompts - expected at least "
                "one of both; switch the grid off with method.loop.sample_every=0."
            )


@dataclass(frozen=True)
class PersonalizeConfig:
    """Teach a prior a subject or a style from a few photos."""

    task: Literal["personalize"] = "personalize"
    """What the file is for."""
    subject: SubjectPhotosConfig = SubjectPhotosConfig()
    """Whose photos."""
    method: MethodConfig = setting(default_factory=DreamBoothLoraConfig)
    """textual_inversion, dreambooth, dreambooth_lora or dco."""
    prior: PriorConfig = setting(default_factory=PocketPriorConfig)
    """The model that learns."""
    samples: SamplesConfig = setting(default_factory=SamplesConfig)
    """Pictures on the way."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        """Refuse captions and words that would not be read."""
        if isinstance(self.method, TextualInversionConfig):
            self._check_word(self.method)
        if self.subject.captions and not isinstance(self.method, DcoConfig):
            raise ValueError(
                f"subject.captions is {self.subject.captions!r} with method.kind="
                f"{self.method.kind} - expected none, or method.kind=dco."
            )

    def _check_word(self, method: TextualInversionConfig) -> None:
        """A new word's names are the subject's, whatever trains it."""
        given = {"token": ("token", self.token), "init_word": ("word", self.subject.word)}
        for name, (key, value) in given.items():
            told = getattr(method, name)
            if told not in (getattr(TextualInversionConfig(), name), value):
                raise ValueError(
                    f"method.{name} is {told!r}, which subject.{key} says here - expected it there "
                    f"alone: subject.{key}={told!r}."
                )

    @property
    def token(self) -> str:
        """How prompts name the subject."""
        word = self.subject.word
        if self.subject.token:
            return self.subject.token
        if isinstance(self.method, TextualInversionConfig | DcoConfig):
            return f"<my-{'-'.join(word.split())}>"
        return f"sks {word}"

    @property
    def class_phrase(self) -> str:
        """The class with its article, or without where the template has one: what an untrained
        prior reads in the subject's place."""
        word = self.subject.word
        before = self.subject.template.partition("{}")[0].lower().split()
        if before and before[-1] in ARTICLES:
            return word
        return f"an {word}" if word[:1].lower() in VOWELS and word else f"a {word}"

    def resolved_method(self) -> MethodConfig:
        """The method with what it takes from the subject."""
        if not isinstance(self.method, TextualInversionConfig):
            return self.method
        return replace(self.method, token=self.token, init_word=self.subject.word)
