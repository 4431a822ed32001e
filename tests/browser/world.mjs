// Servers of the test's own, on free ports, ended with it; and waiting for a condition, never for time.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PATIENCE = 30_000;
const children = new Set();
export const folder = mkdtempSync(join(tmpdir(), "hookgate-browser-"));

process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

/* `what` is a text, or a function that says at the end how it stood. */
export async function until(what, condition, patience = PATIENCE) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${patience / 1000} s: ${typeof what === "function" ? what() : what}`);
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}

export const freePort = () => new Promise((resolve, reject) => {
  const server = createServer().once("error", reject).listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

const listens = port => new Promise(resolve => {
  const socket = connect(port, "127.0.0.1", () => { socket.destroy(); resolve(true); });
  socket.once("error", () => resolve(false));
});

/* The first line of what Redis answers. */
const ask = (port, command) => new Promise((resolve, reject) => {
  let said = "";
  const socket = connect(port, "127.0.0.1", () => socket.write(`${command}\r\n`)).once("error", reject);
  socket.on("data", data => {
    said += data;
    if (said.includes("\r\n")) { socket.destroy(); resolve(said.split("\r\n")[0]); }
  });
});

export class Server {
  constructor(program, args, port) {
    Object.assign(this, { program, args, port });
  }

  async start() {
    this.said = "";
    // No server outlives the test, however that ends.
    this.child = spawn("setpriv", ["--pdeathsig", "KILL", this.program, ...this.args], {
      cwd: folder, stdio: ["ignore", "pipe", "pipe"], env: { PATH: process.env.PATH },
    });
    children.add(this.child);
    for (const stream of [this.child.stdout, this.child.stderr]) stream.on("data", data => { this.said += data; });
    this.ended = new Promise(resolve => this.child.once("exit", () => { children.delete(this.child); resolve(); }));
    await until(`${this.program} listens`, async () => {
      if (this.child.exitCode !== null) throw new Error(`${this.program} ended:\n${this.said}`);
      return listens(this.port);
    });
    return this;
  }

  async end(signal = "SIGKILL") {
    this.child.kill(signal);
    await this.ended;
  }
}

let worlds = 0;

/* `settings` stand before the routes, `more` after them. */
export async function world(hookgate, routes, { settings = "", more = "", drain = "0s" } = {}) {
  worlds += 1;
  const [redisPort, natsPort, webhooks, admin] = [await freePort(), await freePort(), await freePort(), await freePort()];
  const redis = await new Server(process.env.HOOKGATE_REDIS_SERVER ?? "redis-server",
    ["--bind", "127.0.0.1", "--port", `${redisPort}`, "--save", ""], redisPort).start();
  const nats = await new Server(process.env.HOOKGATE_NATS_SERVER ?? "nats-server",
    ["-a", "127.0.0.1", "-p", `${natsPort}`, "-js", "-sd", join(folder, `nats-${worlds}`)], natsPort).start();
  const config = join(folder, `hookgate-${worlds}.toml`);
  writeFileSync(config, `
server = { listen = "127.0.0.1:${webhooks}", request_deadline = "4s", drain_delay = "${drain}" }
admin.listen = "127.0.0.1:${admin}"
redis.url = "redis://127.0.0.1:${redisPort}"
redis.timeout = "3s"
nats.url = "nats://127.0.0.1:${natsPort}"
outbox.relay_after = "5s"
log.filter = "warn"
${settings}
${routes.map(([entity, action]) => `[[routes]]\nflow = "vmh"\nentity = "${entity}"\naction = "${action}"\nwhile_pending = "skip"\n`).join("")}${more}`);
  const gate = await new Server(hookgate, ["--config", config], admin).start();
  const origin = `http://127.0.0.1:${admin}`;
  await until("hookgate is ready", async () => (await fetch(`${origin}/readyz`)).status === 200);
  const post = async (path, records) => {
    const answer = await fetch(`http://127.0.0.1:${webhooks}/vmh/webhook/${path}`, { method: "POST", body: typeof records === "string" ? records : JSON.stringify(records) });
    await answer.arrayBuffer();
    return answer.status;
  };
  const status = async () => (await fetch(`${origin}/v1/status`)).json();
  // Asked of Redis itself: what the status says is up to two seconds old.
  const settled = () => until("the outboxes are empty", async () =>
    (await Promise.all((await status()).routes.map(route => ask(redisPort, `HLEN {${route.pending_key}}:outbox`)))).every(answer => answer === ":0"));
  return { redis, nats, gate, origin, post, status, settled };
}
