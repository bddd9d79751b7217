"""What the page of a report looks like: Jinja templates in HTML and Markdown, and the style sheet of the HTML."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root {
  color-scheme: light dark;
  --ink: #1b1b1b; --paper: #ffffff; --soft: #595959; --rule: #cfcfcf; --block: #f3f3f3; --accent: #0059a3;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181c; --soft: #a8a8a8; --rule: #3d4148; --block: #22262c; --accent: #7cc0ff; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, caption { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; }
.summary { margin: 1.2rem 0; padding: .8rem 1rem; background: var(--block); border-left: 4px solid var(--accent); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures img {
  flex: 1 1 20rem; width: 100%; max-width: 31rem; height: auto; align-self: flex-start; padding: .5rem;
  background: #ffffff; border: 1px solid var(--rule); border-radius: .4rem;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; padding: .3rem 0; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; }
.summary thead th { white-space: normal; overflow-wrap: normal; }
th[scope=row] { font-weight: 400; }
.tokens td, .tokens thead th:last-child { text-align: left; white-space: normal; padding: .3rem 0; }
.token { display: inline-block; margin: .1rem .6rem .1rem 0; }
code { font: .9em ui-monospace, Consolas, "DejaVu Sans Mono", monospace; background: var(--block); padding: .1em .35em;
  border: 1px solid var(--rule); border-radius: .25em; white-space: pre-wrap; }
small { color: var(--soft); }
summary { cursor: pointer; color: var(--accent); margin-top: .6rem; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  .tokens thead { display: none; }
  .tokens tr, .tokens td, .tokens th { display: block; text-align: left; border: none; padding: 0; }
  .tokens tr { padding: .3rem 0; border-bottom: 1px solid var(--rule); }
  .tokens th::before { content: "expert "; }
}
@media print {
  :root { --ink: #000000; --paper: #ffffff; --soft: #333333; --rule: #999999; --block: #ffffff; --accent: #000000; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  .pictures img { max-width: 48%; border: none; padding: 0; }
  img, tr, .summary { break-inside: avoid; }
  h2, h3, .lead { break-after: avoid; }
  details:not([open]) { display: none; }
}
@page { margin: 15mm; }
"""

HTML: Final = (
    """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{{ title | visible(" ") }}</title>
<style>"""
    + CSS
    + """</style>
</head>
<body>
<main>
<h1>{{ title | visible(" ") }}</h1>
<dl>
{% for name, value in facts.items() %}
<dt>{{ name }}</dt><dd>{{ value | visible(" ") }}</dd>
{% endfor %}
</dl>
<div class="summary">
<div class="wide"><table>
<caption>Share of the gate weight, all linears</caption>
<thead><tr><th scope="col">rows</th>
{%- for group in m.groups %}<th scope="col">experts of type {{ group }}</th>{% endfor %}</tr></thead>
<tbody>
{% for task_type, share_G in zip(m.task_types, m.share_TG) %}
<tr><th scope="row">type {{ task_type }}</th>
{%- for share in share_G %}<td>{{ share | percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
</div>
{% for name, (heading, text) in sections.items() %}
<section id="{{ name }}">
<h2>{{ heading }}</h2>
<p class="lead">{{ text }}</p>
<div class="pictures">
{% for picture in pictures[name] %}
<img src="{{ picture.file | data_uri }}" alt="{{ picture.alt }}" />
{% endfor %}
</div>
<details><summary>Numbers</summary><div class="wide">
{% if name == "gates" %}
{% for task_type, gate_NE in zip(m.task_types, m.gate_TNE) %}
<table><caption>Mean gate, rows of type {{ task_type }}</caption>
<thead><tr><th scope="col">layer</th>
{%- for kind in m.expert_types %}<th scope="col">expert {{ loop.index0 }} ({{ kind }})</th>{% endfor %}</tr></thead>
<tbody>
{% for layer, gate_E in zip(m.layers, gate_NE) %}
<tr><th scope="row">{{ layer }}</th>{% for gate in gate_E %}<td>{{ gate | number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endfor %}
{% elif name == "shares" %}
{% for task_type, share_NG in zip(m.task_types, m.share_TNG) %}
<table><caption>Rows of type {{ task_type }}</caption>
<thead><tr><th scope="col">layer</th>
{%- for group in m.groups %}<th scope="col">experts of type {{ group }}</th>{% endfor %}</tr></thead>
<tbody>
{% for layer, share_G in zip(m.layers, share_NG) %}
<tr><th scope="row">{{ layer }}</th>{% for share in share_G %}<td>{{ share | percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endfor %}
{% elif name == "entropy" %}
<table><thead><tr><th scope="col">layer</th>
{%- for task_type in m.task_types %}<th scope="col">tokens' gates, type {{ task_type }}</th>{% endfor %}
{%- for task_type in m.task_types %}<th scope="col">mean gates, type {{ task_type }}</th>{% endfor %}</tr></thead>
<tbody>
{% for layer in m.layers %}
{% set n = loop.index0 %}
<tr><th scope="row">{{ layer }}</th>{% for entropy_N in m.token_entropy_TN + m.load_entropy_TN %}
<td>{{ entropy_N[n] | number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% else %}
<table><thead><tr><th scope="col">layer</th><th scope="col">all rows</th>
{%- for task_type in m.task_types %}<th scope="col">type {{ task_type }}</th>{% endfor %}</tr></thead>
<tbody>
{% for layer in m.layers %}
{% set n = loop.index0 %}
<tr><th scope="row">{{ layer }}</th>{% for variation_N in [m.variation_N] + m.variation_TN %}
<td>{{ variation_N[n] | number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
</div></details>
</section>
{% endfor %}
<section id="tokens">
<h2>Which tokens each expert likes</h2>
<p class="lead">Tokens by their mean gate at an expert, divided by that expert's mean gate over all tokens; those that
occurred at least {{ m.min_count }} times, prompts included. ␣ is a space. Experts of one number in different linears
are different experts that share a type and no weights, so this is a mean over those of a third of the layers.</p>
{% for band in m.bands %}
<h3>{{ "Layers" if "–" in band.layers else "Layer" }} {{ band.layers }}</h3>
<table class="tokens">
<thead><tr><th scope="col">expert (type)</th>
<th scope="col">tokens, and how many times its mean gate they get</th></tr></thead>
<tbody>
{% for liked in band.liked %}
<tr><th scope="row">{{ loop.index0 }} ({{ m.expert_types[loop.index0] }})</th><td>
{% for token in liked %}
<span class="token"><code>{{ token.text | visible }}</code> <small>×{{ "%.1f" | format(token.ratio) }}</small></span>
{% else %}
<small>none</small>
{% endfor %}
</td></tr>
{% endfor %}
</tbody></table>
{% endfor %}
</section>
</main>
</body>
</html>
"""
)

MARKDOWN: Final = """\
# {{ title | visible(" ") | literal }}

| | |
|---|---|
{% for name, value in facts.items() %}
| {{ name }} | {{ value | visible(" ") | literal }} |
{% endfor %}

| share of the gate weight |{% for group in m.groups %} experts of type {{ group }} |{% endfor %}

|---|{% for group in m.groups %}---|{% endfor %}

{% for task_type, share_G in zip(m.task_types, m.share_TG) %}
| rows of type {{ task_type }} |{% for share in share_G %} {{ share | percent }} |{% endfor %}

{% endfor %}
{% for name, (heading, text) in sections.items() %}

## {{ heading }}

{{ text }}

{% for picture in pictures[name] %}
![{{ picture.alt | literal }}]({{ picture.file }})
{% endfor %}
{% endfor %}

| layer | entropy of each token's gates | entropy of the mean gates | coefficient of variation |
|---|---|---|---|
{% for layer in m.layers %}
{% set n = loop.index0 %}
| {{ layer | literal }} |
{%- for entropy_TN in [m.token_entropy_TN, m.load_entropy_TN] %}
{% for task_type, entropy_N in zip(m.task_types, entropy_TN) %} type {{ task_type }}: {{ entropy_N[n] | number }}
{%- endfor %} |{% endfor %} {{ m.variation_N[n] | number }} |
{% endfor %}

## Which tokens each expert likes

Tokens by their mean gate at an expert, divided by that expert's mean gate over all tokens; those that occurred at least
{{ m.min_count }} times, prompts included. ␣ is a space.

| layers | expert | type | tokens, and how many times its mean gate they get |
|---|---|---|---|
{% for band in m.bands %}
{% for liked in band.liked %}
| {{ band.layers | literal }} | {{ loop.index0 }} | {{ m.expert_types[loop.index0] }} |
{%- for token in liked %} <code>{{ token.text | visible | literal }}</code> ×{{ "%.1f" | format(token.ratio) }}
{%- else %} none{% endfor %} |
{% endfor %}
{% endfor %}
"""
