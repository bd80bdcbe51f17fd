"use strict";
// Adds to pages that work without it: films one by one with their progress, and changes in place.
(() => {
  const AT_ONCE = 3, TRIES = 6, PATIENCE = 250; // requests, attempts at a busy service, ms after the last move of a slider
  const find = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const form = find("#diagnose"), gone = find("#main").dataset.gone;
  const percent = (share) => `${+(100 * share).toFixed(1)}${document.documentElement.lang.startsWith("zh") ? "%" : "\u00a0%"}`;
  const parse = (html) => Object.assign(document.createElement("template"), { innerHTML: html }).content;

  const paragraph = (className, textContent) => Object.assign(document.createElement("p"), { className, textContent });

  // For who hears the page: one sentence a film, instead of every step of every progress bar.
  const announce = (text) => find("#announcements").append(paragraph("", text.replace(/\s+/g, " ").trim()));
  const answerOf = (card) => find(".answer", card).textContent;

  // What the cards on the page are called: for export, for a reload and for the switch of language.
  const follow = () => {
    const ids = all("article[data-id]").map((card) => card.dataset.id), toolbar = find("#toolbar");
    const query = new URLSearchParams(ids.map((id) => ["id", id]));
    if (form) history.replaceState(null, "", form.dataset.home + (ids.length ? `?${query}` : ""));
    if (toolbar) toolbar.hidden = !ids.length;
    all("[data-export]").forEach((link) => { link.href = `${link.dataset.export}?${query}`; });
    if (form) all("[data-language]").forEach((link) => {
      link.href = `${link.dataset.language}?${new URLSearchParams({ back: location.pathname + location.search })}`;
    });
  };

  const post = async (url, fields) => {
    const answer = await fetch(url, { method: "POST", headers: { "X-Fragment": "1" }, body: new URLSearchParams(fields) });
    return { ok: answer.ok, html: parse(await answer.text()) };
  };

  // A new decision changes the words of a card only: its pictures, open details and focus stay.
  const latest = new WeakMap();
  const redecide = async (card, fields) => {
    const ticket = {};
    latest.set(card, ticket);
    const { ok, html } = await post(find("[data-redecide]", card).action, fields).catch(() => ({}));
    const fresh = html && find("article", html);
    if (latest.get(card) !== ticket || !fresh) return;
    if (!ok) { card.replaceWith(fresh); follow(); return; }
    all("[data-part]", card).forEach((part) => part.replaceWith(find(`[data-part="${part.dataset.part}"]`, fresh)));
    card.dataset.status = fresh.dataset.status;
    const [slider, output] = [find("[name=threshold]", card), find("output", card)];
    slider.value = find("[name=threshold]", fresh).value;
    output.textContent = find("output", fresh).textContent;
    slider.setAttribute("aria-valuetext", output.textContent);
    if (card.contains(document.activeElement)) announce(`${find("h2", card).textContent}: ${answerOf(card)}`);
  };
  const waits = new Map();
  const soon = (key, work) => { clearTimeout(waits.get(key)); waits.set(key, setTimeout(work, PATIENCE)); };

  document.addEventListener("input", ({ target }) => {
    if (target.matches("[data-strength]")) find(".overlay", target.closest("figure")).style.opacity = target.value;
    if (target.name !== "threshold") return;
    const output = find("output", target.parentElement);
    output.textContent = percent(target.value);
    target.setAttribute("aria-valuetext", output.textContent);
  });

  document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-cam]")) {
      const { source, text } = target.selectedOptions[0].dataset;
      Object.assign(find(".overlay", target.closest("figure")), { src: source, alt: text });
    }
    const card = target.closest("article");
    if (card && target.name === "threshold") soon(card, () => redecide(card, { threshold: target.value }));
  });

  document.addEventListener("submit", async (event) => {
    const own = event.target, card = own.closest("[data-slot]");
    if (own.matches("[data-redecide]")) {
      event.preventDefault();
      const button = event.submitter;
      redecide(card, button?.name ? { [button.name]: button.value } : { threshold: own.elements.threshold.value });
      if (button?.name) own.elements.threshold.focus(); // the button is about to go
    } else if (own.matches("[data-delete]") && form) {
      event.preventDefault();
      const { html } = await post(own.action, {}).catch(() => ({}));
      if (!html) return;
      card.replaceChildren(html);
      card.removeAttribute("data-id");
      card.removeAttribute("aria-labelledby");
      card.tabIndex = -1;
      card.focus();
      follow();
    }
  });

  // Pictures are held for some minutes; a page may be open for longer.
  document.addEventListener("error", ({ target }) => {
    const figure = target instanceof HTMLImageElement && target.closest("figure");
    if (figure) figure.replaceChildren(paragraph("gone", gone));
  }, true);

  follow();
  if (!form) return;

  const { files, category, model, own, threshold, save, keep } = form.elements;
  const [drop, complaint, list, words] = [find("#drop"), find("#complaint"), find("#progress"), form.dataset];
  const groups = all("optgroup", model), waiting = [];
  let running = 0;

  const offer = () => {
    const { threshold: value, own: text, denoise: possible } = model.selectedOptions[0].dataset;
    find("#own-value").textContent = `(${text})`;
    const denoise = find("[name=noise_handling][value=denoise]");
    denoise.disabled = !possible;
    if (denoise.disabled && denoise.checked) find("[name=noise_handling]").checked = true;
    if (own.checked) threshold.value = value;
    const told = own.checked ? text : percent(threshold.value); // the slider has steps, the model's own value has not
    threshold.setAttribute("aria-valuetext", told);
    find("#threshold-value").textContent = told;
  };
  const choose = () => {
    model.replaceChildren(...groups.filter((group) => group.dataset.category === category.value));
    offer();
  };
  const redecideAll = () => all("article[data-id]").filter((card) => find("[data-redecide]", card)).forEach((card) => {
    const button = find("[name=own]", card);
    if (!own.checked) redecide(card, { threshold: threshold.value });
    else if (button) redecide(card, { own: button.value });
  });

  category.addEventListener("change", choose);
  model.addEventListener("change", offer);
  threshold.addEventListener("change", () => { own.checked = false; soon(form, redecideAll); });
  own.addEventListener("change", () => { offer(); soon(form, redecideAll); });
  save.addEventListener("change", () => { keep.disabled = !save.checked; });
  choose();

  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  drop.addEventListener("drop", ({ dataTransfer }) => { if (dataTransfer.files.length) files.files = dataTransfer.files; });

  // One film on its way: its line in the list, and the place where its card will stand.
  const say = (job, state) => {
    find(".state", job.line).textContent = words[state];
    job.line.dataset.state = state;
  };
  const finish = (job, state, html, text) => {
    say(job, state);
    find("progress", job.line).value = 1;
    job.place.replaceWith(html);
    announce(`${job.name}: ${text}`);
    follow();
    if ((job.batch.left -= 1) === 0) arrive(job.batch);
  };
  // Focus goes to the first answer if it still waits at the button; who has scrolled on reads already and stays there.
  const arrive = ({ place, top }) => {
    if (![find("button", form), document.body].includes(document.activeElement)) return;
    place.firstElementChild.tabIndex = -1;
    place.firstElementChild.focus({ preventScroll: scrollY !== top });
  };
  const fail = (job, text) => finish(job, "failed", paragraph("notice", `${job.name}: ${text}`), text);
  const send = (job) => {
    const request = new XMLHttpRequest();
    running += 1;
    say(job, "uploading");
    request.open("POST", form.action);
    request.setRequestHeader("X-Fragment", "1");
    request.upload.onprogress = ({ loaded, total }) => { find("progress", job.line).value = (0.9 * loaded) / total; };
    request.upload.onload = () => say(job, "queued");
    request.onload = () => {
      const html = parse(request.responseText), card = find("article", html);
      if (request.status === 503 && request.getResponseHeader("Retry-After") && (job.tries += 1) < TRIES) {
        say(job, "later");
        announce(`${job.name}: ${words.later}`);
        setTimeout(() => { waiting.push(job); next(); }, 1000 * +request.getResponseHeader("Retry-After"));
      } else if (card) {
        finish(job, request.status < 300 && card.dataset.status !== "error" ? "done" : "failed", html, answerOf(card));
      } else {
        fail(job, words.lost);
      }
    };
    request.onerror = () => fail(job, words.lost);
    request.onloadend = () => { running -= 1; next(); };
    request.send(job.body);
  };
  const next = () => { while (running < AT_ONCE && waiting.length) send(waiting.shift()); };

  const jobOf = (file, batch) => {
    const line = find("#row").content.firstElementChild.cloneNode(true), body = new FormData(form);
    const place = batch.place.appendChild(document.createElement("div"));
    body.delete("files");
    body.append("files", file, file.name);
    find(".film-name", line).textContent = file.name;
    find("progress", line).setAttribute("aria-label", file.name);
    list.append(line);
    return { name: file.name, line, place, body, batch, tries: 0 };
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = [...files.files];
    const batch = { place: document.createElement("div"), left: chosen.length, top: scrollY };
    complaint.textContent = chosen.length > +words.most ? words.tooMany : "";
    if (complaint.textContent) return;
    if (!running && !waiting.length) list.replaceChildren();
    list.hidden = false;
    announce(words.uploading);
    find("#batches").prepend(batch.place);
    for (const file of chosen) {
      const job = jobOf(file, batch);
      say(job, "waiting");
      if (file.size > +words.bytes) fail(job, words.tooLarge);
      else waiting.push(job);
    }
    files.value = "";
    next();
  });
})();
