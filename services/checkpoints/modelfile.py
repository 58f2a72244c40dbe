"""`Modelfile` for importing a GGUF file into Ollama (ollama/ollama `docs/modelfile.md`)."""

from pathlib import Path

from services.templates import BOS, EOS, Segment, Template, find_template

MODELFILE = "Modelfile"


def write_modelfile(target: Path, model_file: str, template: str | None) -> None:
    """Writes FROM, and for a known prompt template TEMPLATE and its stop strings."""
    lines = [f"FROM ./{model_file}"]
    if template is not None:
        row = find_template(template)
        lines.append(f'TEMPLATE """{ollama_template(row)}"""')
        lines += [f'PARAMETER stop "{stop}"' for stop in row.stop]
    (target / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def ollama_template(row: Template) -> str:
    """Returns one turn of a prompt template in Go's notation; Ollama itself adds the beginning-of-text token."""
    system = row.default_system
    stated = "{{ if .System }}{{ .System }}{{ else }}" + system + "{{ end }}" if system else "{{ .System }}"
    preamble = "".join(stated if part == "{system}" else _text(part) for part in row.preamble)
    first = row.first_user if row.first_user is not None else row.user[0]
    before, after = "".join(map(_text, first)), "".join(map(_text, row.user[1]))
    return preamble + before + "{{ .Prompt }}" + after + "".join(map(_text, row.cue)) + "{{ .Response }}"


def _text(segment: Segment | str) -> str:
    if isinstance(segment, str):
        return segment
    if segment in (BOS, EOS):
        return ""
    return segment.piece if hasattr(segment, "piece") else segment.text
