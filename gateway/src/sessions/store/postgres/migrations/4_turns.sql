CREATE TYPE begun AS (
    version bigint,
    turns bigint,
    running uuid,
    updated_ms bigint,
    settings bytea,
    turn uuid,
    place bigint,
    -- Unset: as it was given.
    accepted bytea,
    answer bytea
);

-- Accepts a turn. The one that its key began before is given as it is; the caller looks whether it is the same. `_again`: an
-- attempt before this may have begun it.
CREATE FUNCTION begin_turn(
    _gateway uuid, _tenant text, _session uuid, _turn uuid, _version bigint, _key bytea, _accepted bytea,
    _accepted_ms bigint, _most bigint, _again boolean
) RETURNS SETOF begun LANGUAGE plpgsql AS $$
DECLARE
    _held sessions := hold_session(_tenant, _session);
    _found uuid;
    _before turns;
    _kept bigint;
BEGIN
    _found := (SELECT turn FROM session_turns WHERE session = _session AND key = _key);
    IF _again AND _held.running = _turn THEN
        _found := _turn;
    END IF;
    IF _found IS NOT NULL THEN
        SELECT * INTO _before FROM turns WHERE id = _found;
        RETURN QUERY SELECT _held.version, _held.turns, _held.running, _held.updated_ms, _held.settings,
            _before.id, _before.place, _before.accepted, _before.answer;
        RETURN;
    END IF;
    _held := hold_idle(_tenant, _session, _version);
    IF EXISTS (SELECT FROM turns WHERE id = _turn) THEN
        PERFORM refuse('YS004', json_build_object('turn', _turn));
    END IF;
    SELECT coalesce(sum(bytes), 0)::bigint INTO _kept FROM usage WHERE tenant = _tenant;
    IF _kept + octet_length(_accepted) > _most THEN
        PERFORM refuse('YS007', json_build_object('what', 'bytes', 'kept', _kept, 'most', _most));
    END IF;
    IF NOT holds(_gateway) THEN
        PERFORM refuse('YS008', '{}');
    END IF;
    INSERT INTO turns VALUES (_turn, _tenant, _session, _held.turns, _accepted, NULL, 1);
    INSERT INTO session_turns VALUES (_session, _held.turns, _turn, _key);
    INSERT INTO running VALUES (_turn, _gateway, false);
    UPDATE sessions SET version = version + 1, turns = turns + 1, running = _turn, updated_ms = _accepted_ms
        WHERE id = _session RETURNING * INTO _held;
    PERFORM count_usage(_tenant, 0, octet_length(_accepted));
    RETURN QUERY SELECT _held.version, _held.turns, _held.running, _held.updated_ms, _held.settings,
        _turn, _held.turns - 1, NULL::bytea, NULL::bytea;
END $$;

-- Takes the turn out of those that run under a gateway; whether it did.
CREATE FUNCTION ends_running(_gateway uuid, _turn uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT holds(_gateway) THEN
        RETURN false;
    END IF;
    DELETE FROM running WHERE turn = _turn AND gateway = _gateway;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM tokens WHERE turn = _turn;
    RETURN true;
END $$;

CREATE FUNCTION discard_turn(_gateway uuid, _turn uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _held sessions;
    _bytes bigint;
BEGIN
    SELECT s.* INTO _held FROM sessions s JOIN turns t ON t.session = s.id WHERE t.id = _turn FOR UPDATE OF s;
    IF NOT FOUND OR NOT ends_running(_gateway, _turn) THEN
        RETURN;
    END IF;
    UPDATE sessions SET version = version + 1, turns = turns - 1, running = NULL WHERE id = _held.id;
    _bytes := keep_first(_held.id, _held.turns - 1);
    PERFORM count_usage(_held.tenant, 0, -_bytes);
END $$;

-- Commits an answer; the session's version since then. Said again, it does nothing.
CREATE FUNCTION finish_turn(_gateway uuid, _turn uuid, _answer bytea, _ended_ms bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _held sessions;
    _kept turns;
BEGIN
    SELECT s.* INTO _held FROM turns t
        JOIN sessions s ON s.id = t.session
        WHERE t.id = _turn FOR UPDATE OF s;
    -- Read again, as what it waited for may have changed it.
    SELECT t.* INTO _kept FROM turns t JOIN session_turns p ON p.session = t.session AND p.place = t.place
        WHERE t.id = _turn AND p.turn = _turn;
    IF NOT FOUND OR _held.id IS NULL THEN
        PERFORM refuse('YS002', json_build_object('turn', _turn));
    END IF;
    IF _kept.answer = _answer THEN
        RETURN _held.version;
    END IF;
    IF _kept.answer IS NOT NULL OR NOT ends_running(_gateway, _turn) THEN
        PERFORM refuse('YS009', json_build_object('turn', _turn));
    END IF;
    UPDATE turns SET answer = _answer WHERE id = _turn;
    UPDATE sessions SET version = version + 1, running = NULL, updated_ms = _ended_ms
        WHERE id = _held.id RETURNING * INTO _held;
    PERFORM count_usage(_held.tenant, 0, octet_length(_answer));
    RETURN _held.version;
END $$;
