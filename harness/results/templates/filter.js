(function () {
  "use strict";
  var form = document.getElementById("filter");
  if (!form) { return; }
  var find = document.getElementById("filter-find");
  var said = document.getElementById("filter-said");
  var boxes = Array.from(form.querySelectorAll("input[type=checkbox]"));
  var items = Array.from(document.querySelectorAll("[data-cell]"), function (element) {
    return { element: element, cell: element.dataset.cell, text: element.dataset.cell.toLowerCase(),
             status: element.dataset.status, stays: element.tagName === "TD" };
  });
  var rows = Array.from(document.querySelectorAll(".matrix tbody tr"));
  var total = new Set(items.map(function (item) { return item.cell; })).size;
  var timer = 0;

  function apply() {
    var words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    var wanted = new Set(boxes.filter(function (box) { return box.checked; }).map(function (box) { return box.value; }));
    var shown = new Set();
    items.forEach(function (item) {
      var fits = wanted.has(item.status) && words.every(function (word) { return item.text.includes(word); });
      if (fits) { shown.add(item.cell); }
      if (item.stays) { item.element.classList.toggle("dim", !fits); } else { item.element.hidden = !fits; }
    });
    rows.forEach(function (row) { row.hidden = !row.querySelector("td[data-cell]:not(.dim)"); });
    clearTimeout(timer);
    timer = setTimeout(function () { said.textContent = shown.size + " of " + total + " cells shown"; }, 150);
  }

  function open() {
    var target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    var details = target && target.closest("details");
    if (details) { details.hidden = false; details.open = true; details.scrollIntoView(); details.querySelector("summary").focus({ preventScroll: true }); }
  }

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", function () { setTimeout(apply, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  window.addEventListener("hashchange", open);
  apply();
  open();
})();
