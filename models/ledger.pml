/* A malicious server with any number of ledgers against clients that crash. SPEC 8, 11.
 *
 * Three honest clients; q leaves room for the corrupt ones: two honest signatures open a set (n = 3, C = 0, q = 2, or
 * n = 4, C = 1, q = 3). The server shows any client any ledger at any time: it forks, rewinds and forgets as it likes.
 *
 * Must hold: the opened ledgers form one line (no fork is ever opened twice over), and no round is opened twice.
 * Variants that must fail: -DQ_LOW, -DSIGN_FIRST, -DANY_HEAD (a client adopts a lower head), -DFORGETS_SPENT.
 */
#ifndef DEPTH
#define DEPTH 2
#endif
#include "tree.inc"

#ifdef ANY_HEAD
#define ACCEPTED(ledger, mine) (1)
#else
#define ACCEPTED(ledger, mine) EXTENDS(PARENT(ledger), mine)
#endif
#ifdef Q_LOW
#define NEED 1
#else
#define NEED 2
#endif

byte head[3];          /* durable: the ledger signed last */
byte round_spent[3];   /* durable: highest round spent */
byte unsaved[3];       /* RAM: signed and not yet written down (SIGN_FIRST only) */
byte count[NODES];     /* signatures on a ledger; the server keeps everything */
bit by[MARKS];         /* who signed which */
bit crashed;           /* one crash at a bad moment is enough; without SIGN_FIRST there is no such moment */
byte i, x, y;

inline open_it() {
  y = 1;
  do
  :: y < NODES ->
     if
     :: y != x && count[y] >= NEED ->
        assert(COMPARABLE(x, y));
        assert(ROUND(x) != ROUND(y))
     :: else -> skip
     fi;
     y++
  :: else -> break
  od;
  y = 0
}

inline save() { head[i] = x; round_spent[i] = ROUND(x) }

init {
  do
  :: atomic {
     select(i : 0 .. 2);
     if
     :: unsaved[i] > 0 -> x = unsaved[i]; unsaved[i] = 0; save()
     :: unsaved[i] > 0 && !crashed -> unsaved[i] = 0; crashed = 1
     :: unsaved[i] == 0 ->
        select(x : 1 .. NODES - 1);
        if
        :: ROUND(x) > round_spent[i] && ACCEPTED(x, head[i]) ->
#ifdef SIGN_FIRST
           unsaved[i] = x;
#else
           save();
#endif
#ifdef FORGETS_SPENT
           round_spent[i] = 0;
#endif
           if
           :: !by[3 * x + i] -> by[3 * x + i] = 1; count[x]++
           :: else -> skip
           fi;
           if
           :: count[x] == NEED -> open_it()
           :: else -> skip
           fi
        :: else -> skip
        fi
     fi;
     x = 0 }
  od
}
