// A consumer of a route with `release = "ack"`: it processes each event and acknowledges it. Nothing else to do.

import { access, mkdir, open, readFile, rename } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const {
  NATS_URL = "nats://127.0.0.1:4222",
  NATS_USER, // and its password, which is in a file, where NATS asks for one
  NATS_PASSWORD_FILE,
  STREAM = "HOOKGATE",
  CONSUMER = "case-sync",
  RESULTS = "results",
  WORK_SECONDS = "0",
} = process.env;

/** Your work. Store the result and the token in one step, here a file: then a second delivery does nothing. */
async function work(event, token) {
  const result = `${RESULTS}/${token}.json`;
  if (await access(result).then(() => true, () => false)) return;
  await sleep(WORK_SECONDS * 1000); // read the record from the CRM by event.entity_id, and work
  const part = `${result}.${hostname()}.${process.pid}`; // in containers each is process 1
  const file = await open(part, "w");
  await file.writeFile(JSON.stringify(event));
  await file.sync();
  await file.close();
  await rename(part, result);
}

async function handle(message, ackWait) {
  // Work may take longer than the consumer's `ack_wait`: until it is done, the server must not deliver it again.
  const progress = setInterval(() => message.working(), ackWait / 3);
  try {
    await work(message.json(), message.headers.get("Nats-Msg-Id"));
    if (!(await message.ackAck())) throw new Error("the server did not confirm the acknowledgement");
  } catch (error) {
    const pause = Math.min(2 ** message.info.deliveryCount, 60);
    console.log(`${message.string()}: once more in ${pause} s: ${error}`);
    message.nak(pause * 1000);
  } finally {
    clearInterval(progress);
  }
}

async function consume(connection) {
  const consumer = await jetstream(connection).consumers.get(STREAM, CONSUMER);
  const ackWait = (await consumer.info(true)).config.ack_wait / 1e6;
  while (!leaving) {
    const handled = [];
    fetched = await consumer.fetch({ max_messages: 10, expires: 5000 });
    for await (const message of fetched) {
      handled.push(handle(message, ackWait));
    }
    await Promise.all(handled);
  }
}

await mkdir(RESULTS, { recursive: true });
// What is in hand is finished first. As the first process of a container it would not hear the signal else.
let leaving = false;
let fetched;
let connection;
process.on("SIGTERM", () => {
  leaving = true;
  if (!connection) process.exit();
  // While NATS is away this has no end of its own.
  setTimeout(() => fetched?.stop(), 6000).unref();
});
connection = await connect({
  servers: NATS_URL,
  maxReconnectAttempts: -1,
  reconnectTimeWait: 500,
  waitOnFirstConnect: true,
  inboxPrefix: `_INBOX.${CONSUMER}`,
  ...(NATS_USER && { user: NATS_USER, pass: (await readFile(NATS_PASSWORD_FILE, "utf8")).trim() }),
});
while (!leaving) {
  // No such consumer yet, or NATS is away.
  await consume(connection).catch(async (error) => {
    console.log(`consume ${CONSUMER} of ${STREAM}: ${error}`);
    await sleep(1000);
  });
}
await connection.close();
