"""Components of parameter-efficient methods: one file each, with its typed config in it.

A file that defines a config with `@register("component", name)` is found by itself; a YAML in conf/method/ composes
components into a method. See `hylo.adapters.component` for what a component has to provide.
"""
