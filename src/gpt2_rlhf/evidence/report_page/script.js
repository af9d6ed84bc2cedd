"use strict";
// Filters and orders the samples, which are all in the page; it makes no text of its own but the count.
(() => {
  const form = document.getElementById("filter");
  const list = document.getElementById("list");
  const samples = Array.from(list.children);
  const words = new Map(samples.map((sample) => [sample, sample.textContent.toLowerCase()]));
  const printed = Number(list.dataset.printed);

  const isWanted = (sample, show, wanted) =>
    (show === "all" || sample.dataset[show === "example" ? "group" : "fate"] === show) &&
    words.get(sample).includes(wanted);

  const ordered = (order) => {
    const sign = { file: 0, worst: 1, best: -1 }[order];
    return samples.slice().sort((a, b) => sign * (Number(a.dataset.change) - Number(b.dataset.change)));
  };

  const update = () => {
    const wanted = form.elements.words.value.trim().toLowerCase();
    const show = form.elements.show.value;
    let shown = 0;
    for (const sample of ordered(form.elements.order.value)) {
      sample.hidden = !isWanted(sample, show, wanted);
      shown += sample.hidden ? 0 : 1;
      sample.classList.toggle("unprinted", shown > printed);
      list.append(sample);
    }
    form.elements.count.value = `${shown} of ${samples.length} shown`;
  };

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
