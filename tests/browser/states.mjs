// What the page says in each state, at each width and in each colour scheme; with a picture of each in target/browser.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { barriers, browser, check, open, pictures, sentence, summary } from "./page.mjs";
import { folder, until, world } from "./world.mjs";

const SCREENS = [
  ["desktop", { viewport: { width: 1240, height: 900 }, colorScheme: "light" }],
  ["desktop-dark", { viewport: { width: 1240, height: 900 }, colorScheme: "dark" }],
  ["tablet", { viewport: { width: 800, height: 900 }, colorScheme: "light" }],
  ["phone", { viewport: { width: 390, height: 800 }, colorScheme: "light", isMobile: true, hasTouch: true }],
  ["phone-dark", { viewport: { width: 320, height: 800 }, colorScheme: "dark", isMobile: true, hasTouch: true }],
];
const ROUTES = [["beteiligte", "create"], ["beteiligte", "update"], ["akte", "delete"]];
const program = resolve(process.env.HOOKGATE);
const ids = (prefix, count) => Array.from({ length: count }, (_, number) => ({ id: `${prefix}${(0x6601aa0b1c2d3n + BigInt(number)).toString(16)}` }));

/* Opens the page on each screen, and asks of it what holds in every state and `what` holds in this one. */
async function look(name, { origin }, { says, level, more, also = [], next, change, asks = async () => {} }) {
  for (const [screen, options] of SCREENS) {
    const { page, seen, context } = await open(origin, options, change);
    const where = `${name}, ${screen}`;
    await sentence(page, says);
    await until(`${where}: ${more}`, async () => more.test(await page.textContent("#more")));
    assert.equal(await page.getAttribute("body", "class"), level, where);
    assert.deepEqual(await page.$$eval("#also li", items => items.map(item => item.textContent)), also, where);
    assert.match(await page.textContent("#next"), next, where);
    const [wide, screenWide] = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
    assert.ok(wide <= screenWide, `${where}: ${wide} px on a screen of ${screenWide}`);
    const hidden = await page.$$eval("#events tbody tr:first-child td", cells => cells.filter(cell => cell.getBoundingClientRect().height === 0).length);
    assert.equal(hidden, 0, `${where}: an event keeps its time, id, webhook and outcome`);
    await asks(page);
    assert.deepEqual(await barriers(page), [], where);
    assert.deepEqual(seen, { complaints: [], strangers: [] }, where);
    await page.screenshot({ path: `${pictures}/state-${name}-${screen}.png`, fullPage: true });
    await context.close();
  }
}
/* Whether a text is there in a colour. */
const coloured = (selector, className, text) => async page => {
  const found = await page.$$eval(`${selector}.${className}`, those => those.map(one => one.textContent));
  assert.ok(found.some(one => one.includes(text)), `${text} as ${className} among ${JSON.stringify(found)}`);
};

writeFileSync(join(folder, "secret"), "correct horse battery staple");
const auth = `[[routes]]\nflow = "vmh"\nentity = "kontakt"\naction = "create"\nauth = [{ scheme = "github", secret_files = [${JSON.stringify(join(folder, "secret"))}] }]\n`;
const defaults = await world(program, ROUTES);
const others = await world(program, ROUTES, {
  settings: 'redis.on_unavailable = "reject"\nnats.on_unavailable = "accept"', more: auth, drain: "2s",
});

await check("all is well", async () => {
  assert.equal(await defaults.post("beteiligte/create", ids("a", 7)), 200);
  await until("the ids are counted", async () => (await defaults.status()).routes.some(route => route.pending_ids === 7));
  await look("well", defaults, { says: "All is well.", level: "good", more: /7 ids are pending with the consumers/, next: /^What to do: Nothing\.$/ });
});

await check("NATS down, the outbox grows", async () => {
  await defaults.nats.end();
  await until("it is noticed", async () => (await defaults.status()).nats.state === "unreachable");
  for (const prefix of ["b", "c", "d"]) assert.equal(await defaults.post("akte/delete", ids(prefix, 4)), 503);
  await until("the outbox is counted", async () => (await defaults.status()).routes[0].outbox.entries === 12);
  await look("nats-down", defaults, {
    says: "NATS is unreachable.", level: "bad", next: /^What to do: nothing listens on nats:.*; is NATS running there\? \(nats\.url\)\. hookgate doctor checks again/,
    more: /this instance answers 503 \(nats\.on_unavailable is “reject”\).*12 events wait in the outbox/,
    asks: async page => {
      await coloured("#webhooks .answers span", "is-warn", "503 × 3")(page);
      await coloured("#webhooks td", "is-warn", "12")(page);
      await coloured("#events td", "is-bad", "not acknowledged yet")(page);
      assert.match(await page.textContent("#stores"), /nothing listens on nats:\/\/127\.0\.0\.1:\d+; is NATS running there/);
    },
  });
});

await check("Redis and NATS down", async () => {
  await defaults.redis.end();
  await until("it is noticed", async () => (await defaults.status()).redis.state === "unreachable");
  await look("both-down", defaults, {
    says: "Redis and NATS are both unavailable.", level: "bad", more: /Nothing that was accepted is lost/, next: /hookgate doctor checks both/,
  });
});

await check("Redis down", async () => {
  await defaults.nats.start();
  await until("NATS is back", async () => (await defaults.status()).nats.state === "up");
  assert.equal(await defaults.post("akte/delete", ids("e", 3)), 200);
  await look("redis-down", defaults, {
    says: "Redis is unreachable.", level: "bad", next: /^What to do: nothing listens on 127.*; is Redis running there\? \(redis\.url\)\. hookgate doctor checks again/,
    more: /publishes events without deduplication \(redis\.on_unavailable is “publish”\)/,
    asks: coloured("#webhooks small", "is-warn", "3 went out without deduplication"),
  });
  await defaults.redis.start();
});

await check("this instance says what it does itself", async () => {
  await others.nats.end();
  await until("it is noticed", async () => (await others.status()).nats.state === "unreachable");
  const { page, context } = await open(others.origin);
  await until("NATS", async () => /answers 200 once an event is in the outbox \(nats\.on_unavailable is “accept”\)/.test(await page.textContent("#more")));
  await others.nats.start();
  await others.redis.end();
  await until("Redis", async () => /answers 503 \(redis\.on_unavailable is “reject”\)/.test(await page.textContent("#more")));
  await others.redis.start();
  await sentence(page, "All is well.");
  await context.close();
});

await check("an outbox that NATS does not take", async () => {
  await look("outbox-old", others, {
    says: "40 events have been waiting for up to 2 min.", level: "warn", more: /has not acknowledged them/, next: /hookgate outbox list/,
    change: ({ routes }) => { routes[0].outbox = { entries: 40, oldest_age_seconds: 120 }; },
    asks: coloured("#webhooks td", "is-bad", "2 min"),
  });
});

await check("events that a consumer gave up", async () => {
  await look("given-up", others, {
    says: "3 events were given up by a consumer.", level: "warn", more: /Their work was not done: vmh\/akte\/delete/,
    next: /hookgate dead-letters replay --reason gave_up/,
    change: ({ routes }) => { routes[0].given_up = 3; },
  });
});

await check("ids that nobody releases", async () => {
  await look("unreleased", others, {
    says: "122 ids are pending, and none was released for 15 min.", level: "warn", more: /may be taken for a duplicate: vmh\/akte\/delete/,
    next: /hookgate pending release vmh\/akte\/delete ID/,
    change: ({ routes }) => { Object.assign(routes[0], { pending_ids: 122, unreleased_for_seconds: 900 }); },
    asks: coloured("#webhooks td", "is-warn", "122"),
  });
});

await check("dead letters: batches that are given up, rejected items, and 401", async () => {
  assert.equal(await others.post("beteiligte/create", [...ids("f", 4), {}, 7]), 200);
  assert.equal(await others.post("beteiligte/update", "not JSON"), 400);
  assert.equal(await others.post("kontakt/create", ids("g", 1)), 401);
  await look("dead-letters", others, {
    says: "1 batch was given up by the sender in the last hour.", level: "bad", more: /EspoCRM does not come back: vmh\/beteiligte\/update/,
    also: ["2 items were rejected in the last hour.", "1 request was answered 401 in the last hour."],
    next: /hookgate dead-letters list shows what came/,
    asks: async page => {
      await coloured("#webhooks .answers span", "is-bad", "400 × 1")(page);
      await coloured("#webhooks .answers span", "is-warn", "401 × 1")(page);
      await coloured("#webhooks td", "is-bad", "2")(page);
      await coloured("#webhooks small", "is-bad", "2 dead letters: hookgate dead-letters list")(page);
    },
  });
});

await check("a replica that leaves says so, and is not said to serve once it has ended", async () => {
  const { page, context } = await open(others.origin, SCREENS[0][1]);
  await sentence(page, "given up");
  others.gate.child.kill("SIGTERM");
  await sentence(page, "Shutting down.");
  assert.match(await page.textContent("#more"), /still serves/);
  await others.gate.ended;
  await sentence(page, "This replica has ended.", 2000);
  assert.match(await page.textContent("#more"), /is what it said \d+ s ago/);
  await page.screenshot({ path: `${pictures}/state-ended-desktop.png`, fullPage: true });
  await context.close();
});

await browser.close();
for (const { gate, nats, redis } of [defaults, others]) for (const server of [gate, nats, redis]) await server.end();
summary();
