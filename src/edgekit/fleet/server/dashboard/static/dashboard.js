// Dialogs, selections that take effect at once, and a word where the server does not answer.
"use strict";

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const ask = target?.closest("[data-ask]");
  if (ask) open(ask.dataset.ask);
  else if (target?.closest("[data-close]")) target.closest("dialog").close();
  // The dialog itself is hit only where its backdrop is.
  else if (target instanceof HTMLDialogElement) target.close();
});

function open(word) {
  const dialog = document.getElementById(`ask-${word}`);
  if (!dialog) return;
  // What was seen when the button was pressed is what is decided on.
  const step = document.querySelector("[data-step]");
  const field = dialog.querySelector("input[name=step]");
  if (step && field) field.value = step.dataset.step;
  dialog.showModal();
}

for (const select of document.querySelectorAll(".filters select")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

const lost = document.getElementById("lost");
const missed = () => { lost.hidden = false; };
document.addEventListener("htmx:response:error", missed);
document.addEventListener("htmx:error", missed);
document.addEventListener("htmx:after:swap", () => { lost.hidden = true; });
