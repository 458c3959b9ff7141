/* An honest server that is killed between any two steps and restored from any old backup. SPEC 8.
 *
 * Three clients, q = 2. In each attempt at least q clients join; each brings the ledger that it signed last. The server
 * takes over what extends its own; whoever's ledger then neither extends nor is part of the server's is left out. With q
 * clients left it appends a row, durably, and any of them sign, each after it has written down what it signs.
 *
 * Must hold: whenever a row is appended, the server's ledger contains every row that was ever opened; no round is opened
 * twice. Variants that must fail: -DADOPT_LOWER (the server goes on from its own, lower head), -DQ_LOW, -DNOT_DURABLE
 * (a client forgets what it signed when it crashes).
 */
#ifndef DEPTH
#define DEPTH 3
#endif
#include "tree.inc"

#ifdef Q_LOW
#define Q 1
#else
#define Q 2
#endif

byte server;           /* durable, but a restore puts back an older one */
byte head[3];          /* durable */
byte round_spent[3];   /* durable */
bit opened[NODES];
bit in[3];
byte i, x, y, signed_by, joined;

inline join(c) {
  if
  :: in[c] = 1; joined++
  :: skip
  fi
}

inline leave_out_strangers(c) {
  if
  :: in[c] && !EXTENDS(server, head[c]) -> in[c] = 0; joined--
  :: else -> skip
  fi
}

inline sign(c) {
  if
  :: in[c] && ROUND(x) > round_spent[c] ->
     if
     :: signed_by++;
#ifdef NOT_DURABLE
        if
        :: head[c] = x; round_spent[c] = ROUND(x)
        :: skip                                          /* crash: nothing was written down */
        fi
#else
        head[c] = x; round_spent[c] = ROUND(x)
#endif
     :: head[c] = x; round_spent[c] = ROUND(x)           /* crash between the mark and the signature */
     :: skip                                             /* the notice was lost */
     fi
  :: else -> skip
  fi
}

init {
  do
  :: atomic { server > 0 -> server = PARENT(server) }    /* restore, as far back as one likes */
  :: atomic {
     joined = 0; join(0); join(1); join(2);
#ifndef ADOPT_LOWER
     do                                                  /* resupply, in any order */
     :: in[0] && EXTENDS(head[0], server) && head[0] != server -> server = head[0]
     :: in[1] && EXTENDS(head[1], server) && head[1] != server -> server = head[1]
     :: in[2] && EXTENDS(head[2], server) && head[2] != server -> server = head[2]
     :: else -> break
     od;
     leave_out_strangers(0); leave_out_strangers(1); leave_out_strangers(2);
#endif
     if
     :: joined >= Q && server < INNER ->
        select(y : 0 .. BRANCH - 1);
        x = CHILD(server, y);
        y = 1;
        do
        :: y < NODES ->
           assert(!opened[y] || EXTENDS(server, y));     /* nothing that was opened is missing */
           y++
        :: else -> break
        od;
        server = x;                                      /* durable before any notice */
        signed_by = 0; sign(0); sign(1); sign(2);
        if
        :: signed_by >= Q && !opened[x] ->
           y = 1;
           do
           :: y < NODES -> assert(!opened[y] || ROUND(y) != ROUND(x)); y++
           :: else -> break
           od;
           opened[x] = 1
        :: else -> skip
        fi
     :: else -> skip
     fi;
     in[0] = 0; in[1] = 0; in[2] = 0; joined = 0; signed_by = 0; x = 0; y = 0 }
  od
}
