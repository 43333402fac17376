// Package ipam decides which virtual machine holds which floating IP, and remembers it in a file.
//
// # Life of an address
//
// An address is promised and bound in two steps, because the API server names an object only after the webhook that
// must choose the address has answered:
//
//	Reserve   in memory, for 45 s, under a claim    the mutating phase: no name, no UID yet
//	Commit    durable before it returns, Pending    the validating phase: name and UID are known
//	Bind      Bound                                 the stored object was seen
//	Release   Released, rests for the quarantine    the virtual machine and all its pods are gone
//	          free                                  lazily: nothing happens at the end of the rest
//
// # The file
//
// A bbolt database with these buckets. An address key is one byte with the family, 4 or 6, and the 4 or 16 bytes of the
// address, so that keys sort as addresses do:
//
//	ledger/format                                    = version of this drawing
//	addresses/<address key>                          = Allocation
//	owners/<namespace>\x00<name>\x00<uid>\x00<address key> = empty; the mirror of addresses
//	pools/<name>                                     = where the search for the next address goes on, for each family
//	disputes/<address key><uid>                      = another virtual machine that claims the address
//	history/<number: 8 bytes>                        = Event, in the order in which they happened
//
// Values end in a CRC-32C, so that a damaged page is noticed when it is read. One transaction changes all the buckets;
// one goroutine writes, and takes everything that is queued into the same transaction.
//
// Searching happens in memory, in an index of what is held and of what is free; its size follows the number of
// addresses that are held, not the size of the pools.
//
// The package knows no Kubernetes: whether a virtual machine exists is for the caller to find out. It logs nothing and
// starts no timers; what is due (StalePending, a reservation's end) is found when somebody asks.
package ipam
