(function () {
  "use strict";
  var MARKS = { PASSED: "✓", FAILED: "✗", ERROR: "!", SKIPPED: "–", RUNNING: "▶", WAITING: "…" };
  function at(id) { return document.getElementById(id); }
  // Text goes in as text, never as markup: models and logs can say anything.
  function make(tag, text, kind) {
    var element = document.createElement(tag);
    if (text) { element.textContent = text; }
    if (kind) { element.className = kind; }
    return element;
  }
  function fill(parent, children) { parent.replaceChildren.apply(parent, children); }
  function number(value) { return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2); }

  function counts(state) {
    return Object.keys(state.counts).map(function (status) {
      var count = state.counts[status];
      var item = make("li", "", status.toLowerCase() + (count ? "" : " zero"));
      item.append(make("b", String(count)), make("span", MARKS[status] + " " + status.toLowerCase()));
      return item;
    });
  }

  function phones(state) {
    return state.phones.map(function (phone) {
      var item = make("li", "", phone.cell ? "busy" : "");
      var head = make("b", phone.name);
      if (phone.celsius !== null) { head.append(make("span", phone.celsius.toFixed(1) + " °C")); }
      item.append(head, make("span", phone.cell || "free"));
      item.append(make("small", (phone.since ? phone.since + " " : "") + phone.doing + (phone.done ? " · " + phone.done + " done" : ""), "line"));
      return item;
    });
  }

  function cell(one) {
    if (!one) { return make("td", "", "empty"); }
    var td = make("td", "", one.status.toLowerCase());
    var box = make("div");
    box.append(make("span", MARKS[one.status] + " "), make("b", one.status));
    var more = one.status === "PASSED" && one.decode_tok_s !== null ? number(one.decode_tok_s) + " tok/s"
      : one.status === "SKIPPED" ? one.gate || one.reason : one.failure_class || one.doing || (one.built ? "compiled" : "");
    if (more) { box.append(make("small", more)); }
    if (one.phone) { box.append(make("small", one.phone)); }
    td.title = one.id + (one.reason ? ": " + one.reason : "");
    td.append(box);
    return td;
  }

  function matrix(state) {
    var columns = Array.from(new Set(state.cells.map(function (one) { return one.column; }))).sort();
    var rows = new Map();
    state.cells.forEach(function (one) {
      if (!rows.has(one.row)) { rows.set(one.row, {}); }
      rows.get(one.row)[one.column] = one;
    });
    var head = make("tr");
    ["model · mode"].concat(columns).forEach(function (name) { var th = make("th", name); th.scope = "col"; head.append(th); });
    var thead = make("thead"), body = make("tbody");
    thead.append(head);
    rows.forEach(function (found, name) {
      var tr = make("tr"), th = make("th", name);
      th.scope = "row";
      tr.append(th);
      columns.forEach(function (column) { tr.append(cell(found[column])); });
      body.append(tr);
    });
    return [thead, body];
  }

  function show(state) {
    if (at("verdict").textContent !== state.verdict) { at("verdict").textContent = state.verdict; }
    document.title = state.verdict + " · htpfarm";
    at("sim").hidden = state.target !== "sim";
    at("build").textContent = state.build ? "build: " + state.build : "";
    fill(at("counts"), counts(state));
    fill(at("phones"), phones(state));
    fill(at("matrix"), matrix(state));
  }

  var source = new EventSource("/events");
  source.onmessage = function (event) { show(JSON.parse(event.data)); };
  source.onopen = function () { at("link").textContent = "live"; at("link").className = ""; };
  source.onerror = function () { at("link").textContent = "connection lost, trying again"; at("link").className = "lost"; };
})();
