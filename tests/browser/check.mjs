// What a person sees, in a real browser. Prints a line a check.
import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { resolve } from "node:path";
import { barriers, browser, check, open as openAt, pictures, sentence, summary } from "./page.mjs";
import { until, world } from "./world.mjs";

const ROUTES = [["beteiligte", "create"], ["beteiligte", "update"], ["akte", "delete"]];
const HOSTILE = ["<img src=x onerror=\"document.title='owned'\">", "\"><script>document.title='owned'</script>", "ü & 'é' 日本", "x".repeat(255)];
const { nats, redis, gate, origin, post, settled } = await world(resolve(process.env.HOOKGATE), ROUTES);
const open = options => openAt(origin, options);
/* The numbers of a webhook, by the names of their columns. */
const row = (page, name) => page.evaluate(name => {
  const found = [...document.querySelectorAll("#webhooks tbody tr")].find(row => row.querySelector("strong").textContent === name);
  return found && Object.fromEntries([...found.cells].slice(1).map(cell => [cell.dataset.label, cell.textContent]));
}, name);
const shows = (page, name, expected) => {
  let numbers;
  return until(() => `${name} shows ${JSON.stringify(expected)}; it shows ${JSON.stringify(numbers)}`, async () => {
    numbers = await row(page, name);
    return numbers && Object.entries(expected).every(([label, text]) => numbers[label] === text);
  });
};
const events = page => page.$$eval("#events tbody tr", rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent)));

const ids = (prefix, count) => Array.from({ length: count }, (_, number) => ({ id: `${prefix}${(0x6601aa0b1c2d3n + BigInt(number)).toString(16)}`, name: "Erika" }));
const { page, seen } = await open({ viewport: { width: 1240, height: 1000 }, colorScheme: "light" });

await check("an idle hookgate: all is well, nothing has happened", async () => {
  await sentence(page, "All is well.");
  assert.match(await page.textContent("#more"), /3 webhooks are served, both stores are up/);
  assert.equal(await page.textContent("#next"), "What to do: Nothing.");
  assert.equal(await page.isVisible("#also"), false);
  assert.equal(await page.isVisible("#no-events"), true);
  assert.equal(await page.isVisible("#events"), false);
  assert.match(await page.textContent("#stores"), /Redis✓ upversion \d+\.\d+.*NATS✓ upversion \d+\.\d+/);
});

await check("webhooks appear by themselves: new, duplicate, published, pending", async () => {
  assert.equal(await post("beteiligte/create", ids("a", 48)), 200);
  await settled();
  assert.equal(await post("beteiligte/create", ids("a", 12)), 200);
  await shows(page, "vmh/beteiligte/create", { New: "48", Duplicate: "12", Rejected: "0", Published: "48", Pending: "48", Outbox: "0", "Oldest there": "–", "Last minute": "60" });
  await shows(page, "vmh/akte/delete", { New: "0", "Last minute": "0" });
  assert.match(await page.textContent("#more"), /48 ids are pending/);
  assert.match(await page.textContent("#webhooks tbody tr:has-text('vmh/beteiligte/create')"), /answers: 200 × 2/);
});

await check("a chart and the time of 95 % of the answers", async () => {
  const bars = () => page.getAttribute("#webhooks tbody tr:has-text('vmh/beteiligte/create') svg path", "d");
  assert.match(await bars(), /M[\d.]+ 20V/);
  // The minute is the server's: who looks for the first time sees the same.
  const { page: second, context } = await open();
  await shows(second, "vmh/beteiligte/create", { "Last minute": "60" });
  await context.close();
  await until("the time is shown", async () => {
    await post("beteiligte/create", ids("a", 1));
    return /^≤ \d/.test((await row(page, "vmh/beteiligte/create"))["95 % answered in"]);
  });
});

await check("the last events, newest first, at most 50", async () => {
  assert.equal(await post("akte/delete", ids("b", 3)), 200);
  await until("the newest is on top", async () => (await events(page))[0]?.[0] === ids("b", 3)[2].id);
  const all = await events(page);
  assert.equal(all.length, 50);
  assert.deepEqual(all[0].slice(1), ["vmh/akte/delete", "published"]);
  assert.equal(all[3][2], "duplicate");
});

await check("no name, and no markup out of an id", async () => {
  assert.equal(await post("beteiligte/update", HOSTILE.map(id => ({ id }))), 200);
  await until("the ids are shown", async () => (await events(page)).some(([id]) => id === HOSTILE[0]));
  const shown = (await events(page)).slice(0, 4).map(([id]) => id);
  assert.deepEqual(shown, [...HOSTILE].reverse());
  assert.equal(await page.locator("main img, main script").count(), 0);
  assert.doesNotMatch(await page.title(), /owned/);
  assert.doesNotMatch(await page.textContent("body"), /Erika/);
});

await check("NATS down: said at once, with what waits", async () => {
  await nats.end();
  await sentence(page, "NATS is unreachable.");
  assert.equal(await page.getAttribute("body", "class"), "bad");
  assert.equal(await page.textContent("#spoken"), "NATS is unreachable.");
  assert.match(await page.textContent("#stores"), /NATS✗ unreachable/);
  assert.equal(await post("akte/delete", [{ id: "waits" }]), 503);
  await shows(page, "vmh/akte/delete", { New: "4", Outbox: "1" });
  await until("it is among the events", async () => JSON.stringify((await events(page))[0]) === JSON.stringify(["waits", "vmh/akte/delete", "not acknowledged yet"]));
  await until("how many wait", async () => /1 event waits in the outbox/.test(await page.textContent("#more")));
  assert.match(await page.title(), /^✗ hookgate/);
});

await check("NATS back: the relay is seen at work", async () => {
  await nats.start();
  await sentence(page, "All is well.");
  await until("it was relayed", async () => (await events(page))[0][2] === "published by the relay");
  await shows(page, "vmh/akte/delete", { Published: "4", Outbox: "0", "Oldest there": "–" });
});

await check("Redis down: published without deduplication, and said so", async () => {
  await redis.end();
  await sentence(page, "Redis is unreachable.");
  assert.equal(await post("akte/delete", [{ id: "loose" }]), 200);
  await until("it is said", async () => /1 went out without deduplication/.test(await page.textContent("#webhooks")));
  await redis.start();
  await sentence(page, "All is well.");
});

await check("nothing was asked of anybody else, and the browser had nothing to complain about", async () => {
  assert.deepEqual(seen.strangers, []);
  assert.deepEqual(seen.complaints, []);
});

await check("by keyboard: skip link, pause and resume, each visible when it has the focus", async () => {
  const focused = () => page.evaluate(() => {
    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
    const { top, height } = document.activeElement.getBoundingClientRect();
    return { text: document.activeElement.textContent, ring: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2, inside: top >= 0 && height > 0 };
  });
  await page.reload();
  await sentence(page, "All is well.");
  await page.keyboard.press("Tab");
  assert.deepEqual(await focused(), { text: "Skip to the last events", ring: true, inside: true });
  await page.keyboard.press("Tab");
  assert.deepEqual(await focused(), { text: "Pause updates", ring: true, inside: true });
  await page.keyboard.press("Space");
  assert.equal(await page.getAttribute("#pause", "aria-pressed"), "true");
  assert.equal(await page.textContent("#age"), "paused");
  const asked = await page.waitForRequest(/status/, { timeout: 5000 }).then(() => true, () => false);
  assert.equal(asked, false, "nothing is asked for while it is paused");
  const before = (await row(page, "vmh/akte/delete")).New;
  assert.equal(await post("akte/delete", ids("c", 2)), 200);
  assert.equal((await row(page, "vmh/akte/delete")).New, before);
  await page.keyboard.press("Enter");
  await shows(page, "vmh/akte/delete", { New: `${Number(before) + 2}` });
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  assert.equal((await focused()).text, "Last events");
  await page.keyboard.press("Tab");
  assert.equal((await focused()).text, "status as JSON");
});

await check("out of sight nothing is asked, and nothing is said to be gone", async () => {
  const sight = hidden => page.evaluate(hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await page.waitForResponse(/status/);
  await sight(true);
  // Longer than it takes a silent hookgate to be called gone.
  const asked = await page.waitForRequest(/status/, { timeout: 9000 }).then(() => true, () => false);
  assert.equal(asked, false);
  assert.equal(await page.textContent("#sentence"), "All is well.");
  const again = page.waitForRequest(/status/);
  await sight(false);
  await again;
  await sentence(page, "All is well.");
});

await check("no barriers, light and dark, wide and narrow (axe)", async () => {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1240, 360]) {
      const { page, context } = await open({ viewport: { width, height: 740 }, colorScheme });
      await sentence(page, "All is well.");
      assert.deepEqual(await barriers(page), [], `${colorScheme}, ${width}`);
      await context.close();
    }
  }
});

await check("in the dark it is dark, and light in the light", async () => {
  for (const [colorScheme, dark] of [["light", false], ["dark", true]]) {
    const { page, context } = await open({ colorScheme });
    const [red, green, blue] = (await page.evaluate(() => getComputedStyle(document.body).backgroundColor)).match(/\d+/g).map(Number);
    assert.equal(red + green + blue < 3 * 60, dark, `${colorScheme}: ${red} ${green} ${blue}`);
    await context.close();
  }
});

await check("on a phone: nothing sticks out, each number has its name, touch finds the button", async () => {
  for (const width of [320, 390]) {
    const { page, context, seen } = await open({ viewport: { width, height: 740 }, colorScheme: "dark", hasTouch: true, isMobile: true });
    await sentence(page, "All is well.");
    await until("events are shown", async () => (await events(page)).length > 0);
    const out = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
    assert.ok(out[0] <= out[1], `${out[0]} px on a screen of ${out[1]}`);
    const names = await page.$$eval("#webhooks tbody tr:first-child td", cells => cells.map(cell => getComputedStyle(cell, "::before").content));
    assert.deepEqual(names.slice(0, 3), ['"Last minute"', '"New"', '"Duplicate"']);
    await page.tap("#pause");
    assert.equal(await page.getAttribute("#pause", "aria-pressed"), "true");
    await page.setViewportSize({ width, height: 1500 });
    await page.screenshot({ path: `${pictures}/phone-${width}.png` });
    assert.deepEqual(seen, { complaints: [], strangers: [] });
    await context.close();
  }
});

await check("a screenshot", async () => {
  // Without the hostile ids, which fill the last events with what no sender sends.
  for (const round of [3, 1, 4, 1, 5, 9, 2, 6]) {
    for (const [path, prefix, count] of [["beteiligte/update", "e", 2 * round], ["beteiligte/create", "c", round], ["akte/delete", "d", round % 3]]) {
      assert.equal(await post(path, ids(`${prefix}${round}`, count)), 200);
    }
    await page.waitForResponse(/status/);
  }
  await settled();
  assert.equal(await post("beteiligte/update", ids("e6", 4)), 200);
  await until("they are shown", async () => (await events(page))[0][2] === "duplicate");
  await page.evaluate(() => document.activeElement.blur());
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: `${pictures}/status-${colorScheme}.png` });
  }
  if (process.env.UPDATE === "1") copyFileSync(`${pictures}/status-light.png`, "docs/status.png");
});

await check("hookgate gone: said clearly, and the old numbers fade; back: all is well, counted from 0", async () => {
  await page.emulateMedia({ colorScheme: "light" });
  await gate.end();
  await sentence(page, "hookgate does not answer.");
  assert.match(await page.getAttribute("body", "class"), /\bstale\b/);
  assert.match(await page.textContent("#age"), /last answer \d+ s ago/);
  assert.match(await page.textContent("#more"), /is what it said \d+ s ago/);
  assert.equal(await page.textContent("#spoken"), "hookgate does not answer.");
  await until("it fades", async () => Number(await page.evaluate(() => getComputedStyle(document.querySelector("main > section")).opacity)) < 0.6);
  await page.screenshot({ path: `${pictures}/gone.png` });
  await gate.start();
  await sentence(page, "All is well.");
  await shows(page, "vmh/beteiligte/update", { New: "0", "Last minute": "0" });
  assert.doesNotMatch(await page.getAttribute("body", "class"), /stale/);
});

await browser.close();
for (const server of [gate, nats, redis]) await server.end();
summary();
