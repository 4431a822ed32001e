// What hookgate is compared with, in Node.js: Fastify, ioredis, nats.js.
//
// `server.mjs PORT REDIS_URL NATS_URL original|honest`; the forms are those of the Python baseline beside this one:
//   original  reads the whole set of pending ids, takes the difference, adds what is new
//   honest    adds each id, in one pipeline; Redis says which were new
// Both publish each new id to JetStream, await all acknowledgements of the batch together, and answer then.
import Fastify from "fastify";
import { Redis } from "ioredis";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const PENDING = "vmh:beteiligte:create_pending";
const SUBJECT = "vmh.beteiligte.create";

const claims = {
  async original(redis, ids) {
    const pending = new Set(await redis.smembers(PENDING));
    const added = ids.filter((id) => !pending.has(id));
    if (added.length > 0) await redis.sadd(PENDING, ...added);
    return added;
  },
  async honest(redis, ids) {
    const pipeline = redis.pipeline();
    for (const id of ids) pipeline.sadd(PENDING, id);
    const added = await pipeline.exec();
    return ids.filter((_, index) => {
      const [error, count] = added[index];
      if (error) throw error;
      return count === 1;
    });
  },
};

const [port, redisUrl, natsUrl, form] = process.argv.slice(2);
const claim = claims[form];
const redis = new Redis(redisUrl);
const js = jetstream(await connect({ servers: natsUrl }));
const app = Fastify({ bodyLimit: 16 * 1024 * 1024 });

app.post("/vmh/webhook/beteiligte/create", async (request) => {
  const ids = [...new Set(request.body.map((record) => record.id))];
  const added = await claim(redis, ids);
  const timestamp = new Date().toISOString();
  await Promise.all(
    added.map((id) =>
      js.publish(SUBJECT, JSON.stringify({ entity_id: id, action: "create", source: "webhook", timestamp })),
    ),
  );
  return { status: "received", action: "create", new_ids_count: added.length, total_ids_in_batch: ids.length };
});

await app.listen({ host: "127.0.0.1", port: Number(port), backlog: 4096 });
