"""YAML that a person wrote, to plain values: no objects, each key once, and no more values than the text is worth."""

from typing import Any

_MOST_VALUES = 20_000  # a published config has 60, a script of a day some thousands
_LONGEST_NUMBER = 400  # characters; reading one of a million takes minutes


def parse_yaml(text: str, *, aliases: bool) -> Any:
    """The value of a YAML text.

    Args:
        aliases: accept anchors and merge keys. Written out, all values must be at most 20,000, so that a few lines
            cannot stand for gigabytes; the same limit holds for the text itself.

    Raises:
        ValueError: the text is not YAML, holds too much, has a key twice, or an alias that is not accepted; the reason
            is one line.
    """
    import yaml  # type: ignore[import-untyped]

    class Strict(yaml.SafeLoader):
        """The safe loader, which counts values before it makes any."""

        values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.values += 1
            if self.values > _MOST_VALUES:
                raise yaml.YAMLError(f"it holds more than {_MOST_VALUES:,} values")
            if not aliases and self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"the alias *{self.peek_event().anchor} is not read; write the value out")
            return super().compose_node(parent, index)

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None and self.size(node, {}) > _MOST_VALUES:
                raise yaml.YAMLError(f"with its aliases written out it holds more than {_MOST_VALUES:,} values")
            return node

        def size(self, node: Any, sizes: dict[int, int | None]) -> int:
            """Values in a node, aliases written out. ``sizes`` are those of nodes before; None while one is counted."""
            if id(node) in sizes:
                size = sizes[id(node)]
                if size is None:
                    raise yaml.YAMLError("an alias stands inside the value that it names")
                return size
            sizes[id(node)] = None
            inner: list[Any] = []
            if isinstance(node, yaml.MappingNode):
                self.refuse_twice(node)
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            elif node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
                raise yaml.YAMLError(f"a number has {len(node.value):,} characters")
            sizes[id(node)] = size = 1 + sum(self.size(part, sizes) for part in inner)
            return size

        def refuse_twice(self, node: Any) -> None:
            seen = set()
            for key, _ in node.value:
                # A merge key is no value; a long one may be a number that takes minutes, and is refused by its size.
                is_merge = key.tag == "tag:yaml.org,2002:merge"
                if isinstance(key, yaml.ScalarNode) and not is_merge and len(key.value) <= _LONGEST_NUMBER:
                    value = self.construct_object(key)
                    if value in seen:
                        raise yaml.YAMLError(f"the key {value!r:.60} appears twice")
                    seen.add(value)

    try:
        return yaml.load(text, Loader=Strict)
    # The last three are what the library raises for tags whose text does not fit, such as "!!int ''".
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(reason or "it is nested too deeply") from error
