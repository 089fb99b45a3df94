-- Which versions of the instructions are messages, told to a running attempt. A message has a key, by which it is accepted once.

ALTER TABLE contexts ADD COLUMN message TEXT NOT NULL DEFAULT '';

CREATE UNIQUE INDEX told_messages ON contexts (run, message) WHERE message <> '';
