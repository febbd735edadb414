"use strict";
(() => {
  const list = document.getElementById("list");
  const articles = [...list.children];
  const metric = document.getElementById("metric");
  const subject = document.getElementById("subject");
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const key = (name) => name.toLowerCase().replace(/[-_]+(.)/g, (_, letter) => letter.toUpperCase());

  // The worst value of a case: smallest where high is good, largest where low is. Cases without one come first.
  function worst(article) {
    const chosen = metric.selectedOptions[0];
    const sign = Number(chosen.dataset.sign);
    const values = [...article.querySelectorAll(".strip[data-subject]")]
      .filter((strip) => subject.value === "all" || strip.dataset.subject === subject.value)
      .map((strip) => strip.dataset[key(chosen.value)])
      .filter((value) => value !== undefined)
      .map((value) => sign * Number(value));
    return values.length ? Math.min(...values) : -Infinity;
  }

  function sort() {
    const ranked = articles.map((article, index) => [worst(article), index, article]);
    ranked.sort((a, b) => (a[0] === b[0] ? a[1] - b[1] : a[0] - b[0]));
    list.append(...ranked.map((one) => one[2]));
  }

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const article of articles) {
      const visible = article.querySelector("h3").textContent.toLowerCase().includes(wanted);
      article.hidden = !visible;
      shown += visible ? 1 : 0;
    }
    count.textContent = `${shown} ${shown === 1 ? "case" : "cases"}`;
  }

  metric.addEventListener("change", sort);
  subject.addEventListener("change", sort);
  search.addEventListener("input", filter);
})();
