"""A widget for the page: two pictures of one size under a slider, whole or at 100 %."""

from typing import Any

import gradio as gr

TEMPLATE = """${value ? `
<div class="view"><div class="pair">
  <img class="after" alt="after" src="${value.after}"><img class="before" alt="before" src="${value.before}">
</div></div>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="how much of the picture is before">
<div>before | after <button type="button">100 %</button></div>` : ''}"""
STYLE = """
.view { overflow: auto; max-height: 75vh; }
.pair { position: relative; display: inline-block; line-height: 0; cursor: zoom-in; }
.pair img { max-width: 100%; max-height: 74vh; }
.pair .before { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
.pair.actual { cursor: zoom-out; }
.pair.actual img { max-width: none; max-height: none; width: 100%; }
input { display: block; margin: 0.5em 0; }
button { border: 1px solid; border-radius: 4px; margin-left: 1em; padding: 0 1em; }
"""
SCRIPT = """
const find = name => element.querySelector(name);
function split() {
    const view = find('.view'), pair = find('.pair');
    if (!view) return;
    const width = Math.min(view.clientWidth, pair.clientWidth);
    const at = view.scrollLeft + width * find('input').value / 100;
    find('input').style.width = width + 'px';
    find('.before').style.clipPath = `inset(0 ${pair.clientWidth - at}px 0 0)`;
}
function zoom(x, y) {
    const view = find('.view'), pair = find('.pair'), actual = pair.classList.toggle('actual');
    pair.style.width = actual ? find('.after').naturalWidth / devicePixelRatio + 'px' : '';
    find('button').textContent = actual ? 'whole picture' : '100 %';
    view.scrollTo(x * pair.clientWidth - view.clientWidth / 2, y * pair.clientHeight - view.clientHeight / 2);
    split();
}
element.addEventListener('input', split);
element.addEventListener('scroll', split, true);
element.addEventListener('load', split, true);
window.addEventListener('resize', split);
element.addEventListener('click', event => {
    if (event.target.closest('button')) zoom(0.5, 0.5);
    const pair = event.target.closest('.pair');
    if (!pair) return;
    const box = pair.getBoundingClientRect();
    zoom((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});
"""


def before_after(**options: Any) -> gr.HTML:
    """The widget; its value is None, or the addresses of `before` and `after`.

    The pictures lie on each other; the upper one, before, ends at the slider. A click goes to 100 %, one pixel of the
    picture on one of the screen, where the view scrolls.
    """
    return gr.HTML(None, html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, **options)
