"""Components of parameter-efficient methods: one file per component, including its typed config.

A file that defines a config with `@register("component", name)` is discovered automatically; a YAML file in
conf/method/ composes components into a method. See `hylo.adapters.component` for the interface of a component.
"""
