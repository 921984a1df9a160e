/* The turns of csrc/comm/cpu/protocol.h, for SPIN: every interleaving of WORLD ranks over a few
 * calls, one_shot, two_shot and rounds_ahead as communicator.cpp and products.cpp have them.
 *
 * Checked: what a rank reads is the event that it waited for, whole, from the first look to the last
 * (no early read, no early reuse, no event taken for another a ring or a wrap later); a call's
 * signature is that call's on every rank; nobody waits for ever; nobody fails unless somebody died.
 *
 *   -DMORTAL   one rank may die at any step
 *   -DPRODUCTS  products, whose tiles are in rooms, which no counter counts, by turns
 *   -DWAITLESS, -DRING=4 -DREADS=0, -DPRODUCTS -DROOMS=4    faults, which must be found
 */
#ifndef WORLD
#define WORLD 2
#endif
#ifndef RING
#define RING 8
#endif
#ifndef READS
#define READS 3
#endif
#ifndef ROOMS
#define ROOMS 5
#endif
#define WRAP 16   /* counters are modulo this: more than twice as far as they may part */
#define FIRST 13  /* so that they wrap within the first call or two */
#define NONE 255

byte counter[WORLD];
byte slot[WORLD * RING];  /* which event it holds: NONE while it is written */
byte room[2 * WORLD * ROOMS];  /* which tile it holds: its PRODUCT, or the SUM of the rank's own rows */
byte signature[WORLD * 2];
bool dead[WORLD], failed[WORLD];
bool somebody_died;

#define BEHIND(r, target) ((counter[r] + WRAP - (FIRST + (target)) % WRAP) % WRAP >= WRAP / 2)
#define SLOT(r, e) slot[(r) * RING + (e) % RING]
#define PRODUCT 0
#define SUM (WORLD * ROOMS)
#define ROOM(what, r, t) room[(what) + (r) * ROOMS + (t) % ROOMS]
#define ANY_FAILED (failed[0] || failed[1] || failed[WORLD - 1])

/* Until rank r's counter has reached the target, in events from the beginning. */
inline wait_for(r, target) {
  if
  :: !BEHIND(r, target) -> skip
  :: BEHIND(r, target) && (dead[r] || ANY_FAILED) -> goto give_up
  fi
}

inline wait_all(target) {
  other = 0;
  do
  :: other < WORLD && other != me -> wait_for(other, target); other++
  :: other < WORLD && other == me -> other++
  :: other == WORLD -> break
  od;
  skip  /* a d_step may follow, which no loop may leave into */
}

inline next() {
  if
  :: event >= RING - READS -> wait_all(event + READS + 1 - RING)
  :: else
  fi
}

/* next(), the write, and publish(). */
inline put() {
  next();
  SLOT(me, event) = NONE;
  SLOT(me, event) = event;
  publish()
}

inline publish() {
  atomic { counter[me] = (counter[me] + 1) % WRAP; event++ }
#ifdef MORTAL
  if
  :: me == 1 && !somebody_died -> atomic { somebody_died = true; dead[me] = true; goto end_dead }
  :: true -> skip
  fi
#endif
}

inline await(e) {
#ifdef WAITLESS
  skip
#else
  wait_all(e + 1)
#endif
}

inline look(e) {
  d_step {
    other = 0;
    do
    :: other < WORLD -> assert(SLOT(other, e) == (e)); other++
    :: else -> break
    od;
    other = 0
  }
}

/* Looks at everybody's event e twice, as something that takes a while. */
inline read(e) {
  look(e);
  look(e)
}

inline begin() {
  call++;
  signature[me * 2 + call % 2] = call
}

inline first_await(e) {
  await(e);
#ifndef WAITLESS
  d_step {
    other = 0;
    do
    :: other < WORLD -> assert(signature[other * 2 + call % 2] == call); other++
    :: else -> break
    od;
    other = 0
  }
#endif
  if
  :: ANY_FAILED -> goto give_up
  :: else
  fi
}

inline one_shot(count) {
  begin();
  now = event;
  put();
  first_await(now);
  piece = 0;
  do
  :: piece < count ->
     after = now;
     if
     :: piece + 1 < count -> after = event; put()
     :: else
     fi;
     await(now);
     read(now);
     now = after;
     piece++
  :: else -> break
  od
}

/* `now`: the event of this piece's inputs; `result`: of its results; `before`: of those before. */
inline two_shot(count) {
  begin();
  now = event;
  put();
  first_await(now);
  piece = 0;
  do
  :: piece < count ->
     after = now;
     if
     :: piece + 1 < count -> after = event; put()
     :: else
     fi;
     await(now);
     read(now);
     result = event;
     put();
     if
     :: piece > 0 -> await(before); read(before)
     :: else
     fi;
     before = result;
     now = after;
     piece++
  :: else -> break
  od;
  await(before);
  read(before)
}

/* Two pieces ahead. `now`: the call's first event. */
inline rounds_ahead(count) {
  begin();
  now = event;
  piece = 0;
  do
  :: piece < count + 2 ->
     if
     :: piece < count -> put()
     :: else
     fi;
     if
     :: piece == 2 -> first_await(now); read(now)
     :: piece > 2 -> await(now + piece - 2); read(now + piece - 2)
     :: else
     fi;
     piece++
  :: else -> break
  od
}

/* Products. `tile`: the call's first. */
inline put_tile(t) {
  next();
  d_step { ROOM(PRODUCT, me, t) = NONE; ROOM(SUM, me, t) = NONE };
  ROOM(PRODUCT, me, t) = t;
  publish()
}

inline look_at(what, t) {
  d_step {
    other = 0;
    do
    :: other < WORLD -> assert(ROOM(what, other, t) == (t)); other++
    :: else -> break
    od;
    other = 0
  }
}

inline read_of(what, t) {
  look_at(what, t);
  look_at(what, t)
}

inline product_one_shot(count) {
  begin();
  now = event;
  piece = 0;
  do
  :: piece < count + 1 ->
     if
     :: piece < count -> put_tile(tile + piece)
     :: else
     fi;
     if
     :: piece == 1 -> first_await(now); read_of(PRODUCT, tile)
     :: piece > 1 -> await(now + piece - 1); read_of(PRODUCT, tile + piece - 1)
     :: else
     fi;
     piece++
  :: else -> break
  od;
  tile = tile + count
}

inline product_two_shot(count) {
  begin();
  now = event;
  put_tile(tile);
  first_await(now);
  piece = 0;
  do
  :: piece < count ->
     after = now;
     if
     :: piece + 1 < count -> after = event; put_tile(tile + piece + 1)
     :: else
     fi;
     await(now);
     read_of(PRODUCT, tile + piece);
     result = event;
     next();
     ROOM(SUM, me, tile + piece) = tile + piece;
     publish();
     if
     :: piece > 0 -> await(before); read_of(SUM, tile + piece - 1)
     :: else
     fi;
     before = result;
     now = after;
     piece++
  :: else -> break
  od;
  await(before);
  read_of(SUM, tile + piece - 1);
  tile = tile + count
}

proctype Rank(byte me) {
  byte event = 0, call = 0, piece, other, now, after, result, before, tile = 0;
#ifdef PRODUCTS
  product_two_shot(6);
  product_one_shot(6);
  product_one_shot(1);
  product_two_shot(1);
  product_one_shot(2);
  product_two_shot(2);
  goto end_done;
#endif
  one_shot(1);
  two_shot(3);
  rounds_ahead(4);
  one_shot(1);
  two_shot(2);
  rounds_ahead(1);
  one_shot(2);
  goto end_done;
give_up:
  assert(somebody_died);
  failed[me] = true;
end_dead:
end_done:
  skip
}

init {
  byte r = 0;
  atomic {
    do
    :: r < WORLD -> counter[r] = FIRST; run Rank(r); r++
    :: else -> break
    od
  }
}
